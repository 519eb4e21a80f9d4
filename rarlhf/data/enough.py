"""Checks that there are enough rows for the queries, before any model is trained on them."""

from collections.abc import Sequence

from rarlhf.config.errors import UserError
from rarlhf.config.params import PromptParams
from rarlhf.data.rows import Row


def refuse_too_few(train: Sequence[Row], test: Sequence[Row], prompts: PromptParams) -> None:
    """Refuses too few rows; stage `prompts` may need even more.

    Raises: UserError naming the keys with their values, and the number of rows that can be used.
    """
    asked = {"train": ("train", "validation"), "test": ("test",)}
    for split, rows in (("train", train), ("test", test)):
        usable = sum(len(row.text) >= prompts.min_chars for row in rows)
        if usable < sum(getattr(prompts, key) for key in asked[split]):
            values = ", ".join(f"prompts.{key} = {getattr(prompts, key)}" for key in asked[split])
            raise UserError(
                f"{values}: only {usable:,} of {len(rows):,} {split} rows have prompts.min_chars = {prompts.min_chars} "
                f"characters; lower prompts.{split} or prompts.min_chars, or give more rows"
            )

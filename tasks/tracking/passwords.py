"""Passwords in addresses, such as `http://user:password@host`, are left out of all that is stored or shown."""

import os
import re

ADDRESSES = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")  # environment variables that may hold a password
SHORTEST = 4  # characters of a password that is looked for by itself; a shorter one may be part of any word
_USER = re.compile(r"""(?<=://)[^\s/?#"<>\\]*@""")


def without_passwords(text: str) -> str:
    """A text without users and passwords in its addresses.

    The passwords of `ADDRESSES` are removed everywhere, because a library may quote a piece of an address.
    """
    for name in ADDRESSES:
        user, at, _ = os.environ.get(name, "").partition("://")[2].rpartition("@")
        password = user.partition(":")[2]
        for secret in (f"{user}{at}", password) if len(password) >= SHORTEST else ():
            text = text.replace(secret, "" if secret.endswith("@") else "...")
    return _USER.sub("", text)

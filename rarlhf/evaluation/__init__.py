"""From generations to numbers, comparisons, figures, the report and model cards; nothing here trains."""

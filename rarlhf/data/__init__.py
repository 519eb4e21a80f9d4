"""From rows of any source to queries; nothing here runs a language model."""

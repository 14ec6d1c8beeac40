//! Directory trees: content digests and file actions.

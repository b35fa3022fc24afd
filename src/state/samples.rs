//! Values for tests: one of each kind, every field told apart from the others.

//! Saved forms.

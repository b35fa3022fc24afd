//! Copies out of a guest that lies.

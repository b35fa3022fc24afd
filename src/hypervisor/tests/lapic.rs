//! Local APICs of backends that have their own.

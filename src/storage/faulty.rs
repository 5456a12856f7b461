//! Wraps another storage and makes chosen calls fail.

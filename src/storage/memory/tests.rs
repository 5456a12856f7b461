//! The simulated disk against its promises, and against real files.

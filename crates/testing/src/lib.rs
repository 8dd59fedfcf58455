//! spindle-testing

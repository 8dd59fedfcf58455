//! spindle-engine

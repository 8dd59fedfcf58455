//! spindle-model

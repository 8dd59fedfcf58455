//! spindle-kv

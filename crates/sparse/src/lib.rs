//! spindle-sparse

//! spindle-backend

//! f32 or f64.

use std::iter::Sum;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A precision that references compute in.
pub trait Real:
    Copy
    + PartialOrd
    + From<f32>
    + Into<f64>
    + Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// From f64, rounded.
    fn of(x: f64) -> Self;
    /// `e^self`
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
}

impl Real for f32 {
    fn of(x: f64) -> f32 {
        x as f32
    }

    fn exp(self) -> f32 {
        self.exp()
    }

    fn ln(self) -> f32 {
        self.ln()
    }

    fn sqrt(self) -> f32 {
        self.sqrt()
    }
}

impl Real for f64 {
    fn of(x: f64) -> f64 {
        x
    }

    fn exp(self) -> f64 {
        self.exp()
    }

    fn ln(self) -> f64 {
        self.ln()
    }

    fn sqrt(self) -> f64 {
        self.sqrt()
    }
}

//! Exponentials and logarithms, written once for all vectors.

use super::Lanes;

const EXP_LEAST: f32 = -87.0;
const EXP_MOST: f32 = 88.0;
/// Adding and taking away 1.5 * 2^23 rounds to the nearest integer, which is in the low bits in between.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first of which has few bits: its products with integers are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e^r on |r| <= ln 2 / 2, highest power first.
const EXP: [f32; 7] = [1.388_888_9e-3, 8.333_334e-3, 4.166_666_6e-2, 0.166_666_67, 0.5, 1.0, 1.0];

/// Where `weight` stops falling.
const WEIGHT_LEAST: f32 = -86.0;
/// e^r on |r| <= ln 2 / 2 within 8e-8 of itself, highest power first.
const WEIGHT: [f32; 6] = [8.297_648e-3, 4.191_543e-2, 0.166_675_75, 0.499_988_94, 0.999_999_7, 1.000_000_1];

/// Cephes' `logf`.
const LN: [f32; 9] = [
    7.037_683_6e-2,
    -0.115_146_1,
    0.116_769_99,
    -0.124_201_41,
    0.142_493_23,
    -0.166_680_58,
    0.200_007_15,
    -0.249_999_94,
    0.333_333_3,
];

/// `x = n ln 2 + r`, n an integer: (what has n in its low bits, r). In one step r is off by n 2^-26.
#[inline(always)]
fn reduce<L: Lanes>(x: L::F, in_one_step: bool) -> (L::F, L::F) {
    let rounded = L::fma(x, L::splat(std::f32::consts::LOG2_E), L::splat(ROUND));
    let n = L::sub(rounded, L::splat(ROUND));
    if in_one_step {
        return (rounded, L::fma(n, L::splat(-std::f32::consts::LN_2), x));
    }
    let r = L::fma(n, L::splat(-LN2_HIGH), x);
    (rounded, L::fma(n, L::splat(-LN2_LOW), r))
}

#[inline(always)]
fn polynomial<L: Lanes>(coefficients: &[f32], x: L::F) -> L::F {
    let mut p = L::splat(coefficients[0]);
    for c in &coefficients[1..] {
        p = L::fma(p, x, L::splat(*c));
    }
    p
}

/// See [`Lanes::exp`].
#[inline(always)]
pub(super) fn exp<L: Lanes>(x: L::F) -> L::F {
    let (rounded, r) = reduce::<L>(L::min(x, L::splat(EXP_MOST)), false);
    let scale = L::times_power(L::splat(1.0), rounded);
    L::where_at_least(x, EXP_LEAST, L::mul(polynomial::<L>(&EXP, r), scale))
}

/// See [`Lanes::weight`].
#[inline(always)]
pub(super) fn weight<L: Lanes>(x: L::F) -> L::F {
    let (rounded, r) = reduce::<L>(L::max(x, L::splat(WEIGHT_LEAST)), L::FUSES);
    L::times_power(polynomial::<L>(&WEIGHT, r), rounded)
}

/// See [`Lanes::ln`].
#[inline(always)]
pub(super) fn ln<L: Lanes>(x: L::F) -> L::F {
    let (m, e) = L::mantissa_exponent(x);
    let f = L::sub(m, L::splat(1.0));
    let z = L::mul(f, f);
    let y = L::mul(L::mul(f, z), polynomial::<L>(&LN, f));
    let y = L::fma(e, L::splat(LN2_LOW), y);
    let y = L::fma(z, L::splat(-0.5), y);
    L::fma(e, L::splat(LN2_HIGH), L::add(f, y))
}

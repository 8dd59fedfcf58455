//! Every method against its sentence, on every instruction set present, in eight lanes and in the widest.

use super::*;

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

#[derive(Clone, Copy)]
enum Function {
    Exp,
    Weight,
    Ln,
}

/// A function of sixteen numbers in eight lanes, and in the widest.
struct Map(Function, [f32; 16]);

impl Kernel for Map {
    type Output = [[f32; 16]; 2];

    #[inline(always)]
    fn run<S: Simd>(self) -> Self::Output {
        [self.map::<S>(), self.map::<S::Wide>()]
    }
}

impl Map {
    #[inline(always)]
    fn map<L: Lanes>(&self) -> [f32; 16] {
        let mut out = [0.0; 16];
        for (x, out) in self.1.chunks_exact(L::LANES).zip(out.chunks_exact_mut(L::LANES)) {
            // SAFETY: a vector's elements.
            unsafe {
                let x = L::load(x.as_ptr());
                let y = match self.0 {
                    Function::Exp => L::exp(x),
                    Function::Weight => L::weight(x),
                    Function::Ln => L::ln(x),
                };
                L::store(out.as_mut_ptr(), y);
            }
        }
        out
    }
}

/// Calls `check` with the instruction set's name, x and y for all of `x` from `first` on, sixteen at a time.
fn check_function(function: Function, x: impl Iterator<Item = [f32; 16]> + Clone, check: impl Fn(&str, f32, f32)) {
    for isa in available() {
        for lanes in x.clone() {
            for (x, y) in isa.run(Map(function, lanes)).iter().flat_map(|y| lanes.iter().zip(y)) {
                check(isa.name(), *x, *y);
            }
        }
    }
}

#[test]
fn exp_is_within_two_and_a_half_ulp_and_zero_far_below() {
    let x = (0..2150).map(|n| std::array::from_fn(|i| -86.9 + 0.0813 * n as f32 + 0.01 * i as f32));
    check_function(Function::Exp, x, |isa, x, y| {
        let exact = f64::from(x.min(88.0)).exp();
        let error = (f64::from(y) - exact).abs() / (exact * f64::from(f32::EPSILON));
        assert!(error <= 2.5, "{isa}: exp({x}) = {y}, off by {error} ulp");
    });
    let far = [f32::NEG_INFINITY, -1e30, -87.01, -100.0, 0.0];
    check_function(Function::Exp, std::iter::once(std::array::from_fn(|i| far[i % 5])), |isa, x, y| {
        assert_eq!(y, if x == 0.0 { 1.0 } else { 0.0 }, "{isa}: exp({x})");
    });
}

#[test]
fn weight_is_within_5e_7_of_itself() {
    let x = (0..10_000).map(|n| std::array::from_fn(|i| -0.000_55 * (16 * n + i) as f32));
    check_function(Function::Weight, x, |isa, x, y| {
        let exact = f64::from(x.max(-86.0)).exp();
        let error = (f64::from(y) - exact).abs() / exact;
        assert!(error <= 5e-7, "{isa}: weight({x}) = {y}, off by {error:e}");
    });
}

#[test]
fn ln_is_within_two_ulp_or_1e_7() {
    let x = (0..10_000).map(|n| std::array::from_fn(|i| 1e-30 * 1.0138_f32.powi(n) * (1.0 + i as f32 * 0.37)));
    check_function(Function::Ln, x, |isa, x, y| {
        let exact = f64::from(x).ln();
        let bound = (exact.abs() * 2.0 * f64::from(f32::EPSILON)).max(1e-7);
        assert!((f64::from(y) - exact).abs() <= bound, "{isa}: ln({x}) = {y}, not {exact}");
    });
}

/// Sixteen vectors of small integers, whose sums are exact in any order, joined in every way.
struct Joins([[f32; 16]; 16]);

struct Joined {
    lanes: usize,
    /// `sums`, `maxes`, `splat_eights`.
    eights: [[f32; 16]; 3],
    /// `sum`, `totals`, `largest`.
    whole: [Vec<f32>; 3],
}

impl Kernel for Joins {
    type Output = [Joined; 2];

    #[inline(always)]
    fn run<S: Simd>(self) -> Self::Output {
        [self.join::<S>(), self.join::<S::Wide>()]
    }
}

impl Joins {
    #[inline(always)]
    fn join<L: Lanes>(&self) -> Joined {
        let (mut v, mut eight, mut eights) = ([L::splat(0.0); 16], [L::splat(0.0); 8], [[0.0; 16]; 3]);
        // SAFETY: sixteen elements are a vector's at least.
        unsafe {
            for i in 0..16 {
                v[i] = L::load(self.0[i].as_ptr());
            }
            eight.copy_from_slice(&v[..8]);
            L::store(eights[0].as_mut_ptr(), L::sums(eight));
            L::store(eights[1].as_mut_ptr(), L::maxes(eight));
            L::store(eights[2].as_mut_ptr(), L::splat_eights(self.0[0].as_ptr()));
        }
        let (mut sums, mut largest) = ([0.0; 16], [0.0; 8]);
        for i in 0..16 {
            sums[i] = L::sum(v[i]);
            largest[i % 8] = L::largest(v[i % 8]);
        }
        assert_eq!(L::totals(eight), sums[..8]);
        assert_eq!(L::largests(eight), largest);
        Joined { lanes: L::LANES, eights, whole: [sums.to_vec(), L::totals(v).to_vec(), largest.to_vec()] }
    }
}

#[test]
fn joins_do_what_they_say() {
    let v: [[f32; 16]; 16] = std::array::from_fn(|i| std::array::from_fn(|j| ((i * 37 + j * 53) % 101) as f32 - 50.0));
    let largest = |x: &[f32]| x.iter().copied().fold(f32::MIN, f32::max);
    for isa in available() {
        for Joined { lanes, eights, whole } in isa.run(Joins(v)) {
            let each: Vec<&[f32]> = v[..8].iter().flat_map(|v| v[..lanes].chunks(8)).collect();
            for i in 0..lanes {
                assert_eq!(eights[0][i], each[i].iter().sum::<f32>(), "{}", isa.name());
                assert_eq!(eights[1][i], largest(each[i]), "{}", isa.name());
                assert_eq!(eights[2][i], v[0][i / 8], "{}", isa.name());
            }
            let sums: Vec<f32> = v.iter().map(|v| v[..lanes].iter().sum()).collect();
            assert_eq!(whole[0], sums, "{}", isa.name());
            assert_eq!(whole[1], sums, "{}", isa.name());
            assert_eq!(whole[2], v[..8].iter().map(|v| largest(&v[..lanes])).collect::<Vec<_>>(), "{}", isa.name());
        }
    }
}

/// Rows of codes with weights, multiplied both ways.
struct Products<'a> {
    /// `[48][row_bytes]`
    rows: &'a [u8],
    row_bytes: usize,
    /// `[2][4][row_bytes]`
    of_channels: &'a [i8],
    /// `[2][48]`
    of_rows: &'a [u8],
}

impl Kernel for Products<'_> {
    type Output = [[Vec<f32>; 2]; 2];

    #[inline(always)]
    fn run<S: Simd>(self) -> Self::Output {
        [self.multiply::<S>(), self.multiply::<S::Wide>()]
    }
}

impl Products<'_> {
    /// `code_sums` `[2][48]`; what `add_codes` adds to 1, with the units 2 and 3, `[2][4][row_bytes]`.
    #[inline(always)]
    fn multiply<L: Lanes>(&self) -> [Vec<f32>; 2] {
        let (mut by_row, mut by_channel) = (vec![0.0; 2 * 48], vec![1.0; 2 * 4 * self.row_bytes]);
        // SAFETY: arrays of the sizes that their fields say.
        unsafe {
            for row in (0..48).step_by(L::LANES) {
                let rows = self.rows.as_ptr().add(row * self.row_bytes);
                let sums = L::code_sums::<2>(rows, self.of_channels.as_ptr().cast(), self.row_bytes);
                L::store(by_row.as_mut_ptr().add(row), sums[0]);
                L::store(by_row.as_mut_ptr().add(48 + row), sums[1]);
            }
            let weights = [self.of_rows.as_ptr(), self.of_rows.as_ptr().add(48)];
            L::add_codes::<2>(self.rows.as_ptr(), self.row_bytes, weights, [2.0, 3.0], by_channel.as_mut_ptr());
        }
        [by_row, by_channel]
    }
}

#[test]
fn products_of_codes_are_exact() {
    for row_bytes in [16, 32, 64] {
        let rows: Vec<u8> = (0..48 * row_bytes).map(|i| (i * 37 + i / 7 * 11) as u8).collect();
        let of_channels: Vec<i8> = (0..8 * row_bytes).map(|i| ((i * 53 + 7) % 255) as i32 as u8 as i8).collect();
        let of_channels: Vec<i8> = of_channels.iter().map(|w| (*w).max(-127)).collect();
        let of_rows: Vec<u8> = (0..96).map(|i| (i * 91 + 255) as u8).collect();
        let code = |row: usize, k: usize, j: usize| i32::from(rows[row * row_bytes + j] >> (2 * k) & 3);
        let channels = || (0..4).flat_map(|k| (0..row_bytes).map(move |j| (k, j)));
        let by_row = |h: usize, row: usize| {
            let weight = |k: usize, j: usize| i32::from(of_channels[(4 * h + k) * row_bytes + j]);
            channels().map(|(k, j)| code(row, k, j) * weight(k, j)).sum::<i32>() as f32
        };
        let by_channel = |h: usize, (k, j): (usize, usize)| {
            let sum: i32 = (0..48).map(|row| code(row, k, j) * i32::from(of_rows[48 * h + row])).sum();
            1.0 + (2 + h as i32) as f32 * sum as f32
        };
        let want = [
            (0..2).flat_map(|h| (0..48).map(move |row| (h, row))).map(|(h, row)| by_row(h, row)).collect::<Vec<f32>>(),
            (0..2).flat_map(|h| channels().map(move |channel| by_channel(h, channel))).collect(),
        ];
        for isa in available() {
            let products = Products { rows: &rows, row_bytes, of_channels: &of_channels, of_rows: &of_rows };
            for got in isa.run(products) {
                assert_eq!(got, want, "{}, rows of {row_bytes} bytes", isa.name());
            }
        }
    }
}

struct Integers {
    bytes: [u8; 32],
    weights: [i8; 32],
}

impl Kernel for Integers {
    type Output = ([f32; 8], [f32; 8], [i8; 32]);

    #[inline(always)]
    fn run<S: Simd>(self) -> Self::Output {
        let (mut halves, mut sums, mut rounded) = ([0.0; 8], [0.0; 8], [0; 32]);
        // SAFETY: every pointer is to 32 bytes or eight f32.
        unsafe {
            let w = S::load_bytes(self.weights.as_ptr().cast());
            let fields = S::fields(S::load_bytes(self.bytes.as_ptr()));
            let v = fields.map(|f| S::add_i16(S::dot_pairs(f, w), S::dot_pairs(f, w)));
            S::store(halves.as_mut_ptr(), S::half_sums_i16(v));
            let f = v.map(|v| S::half_sums_i16([v; 4]));
            let v = v.map(S::add_neighbours);
            let one =
                S::add_neighbours(S::dot_pairs(S::splat_byte(1), S::load_bytes_twice(self.weights.as_ptr().cast())));
            S::store(sums.as_mut_ptr(), S::sums_i32([v[0], v[1], v[2], v[3], one, one, v[0], v[1]]));
            S::store_rounded_i8(rounded.as_mut_ptr(), f.map(|x| S::mul(x, S::splat(1.0 / 512.0))));
        }
        (halves, sums, rounded)
    }
}

#[test]
fn integer_methods_do_what_they_say() {
    let bytes: [u8; 32] = std::array::from_fn(|i| (i * 37 + 11) as u8);
    let weights: [i8; 32] = std::array::from_fn(|i| ((i * 53 + 7) % 255) as u8 as i8);
    let weights = weights.map(|w| w.max(-127));
    let field = |j: usize, k: usize| i32::from(bytes[j] >> (2 * k) & 3);
    let half = |k: usize, h: usize| (16 * h..16 * h + 16).map(|j| 2 * field(j, k) * i32::from(weights[j])).sum::<i32>();
    let twice = 2 * weights[..16].iter().map(|w| i32::from(*w)).sum::<i32>();
    for isa in available() {
        let (halves, sums, rounded) = isa.run(Integers { bytes, weights });
        for k in 0..4 {
            assert_eq!([halves[2 * k], halves[2 * k + 1]], [half(k, 0) as f32, half(k, 1) as f32]);
            assert_eq!(sums[k], (half(k, 0) + half(k, 1)) as f32);
            for j in 0..8 {
                let x = half(k, j % 2) as f32 / 512.0;
                assert_eq!(f32::from(rounded[8 * k + j]), x.round_ties_even());
            }
        }
        assert_eq!(sums[4], twice as f32);
    }
}

struct Bytes {
    bytes: [u8; 64],
    weights: [f32; 32],
}

impl Kernel for Bytes {
    type Output = ([u8; 96], [u8; 64], [f32; 16]);

    #[inline(always)]
    fn run<S: Simd>(self) -> Self::Output {
        let (mut mixed, mut stored, mut wide) = ([0; 96], [0; 64], [0.0; 16]);
        // SAFETY: every pointer is to as many elements as the method reads or writes.
        unsafe {
            let (a, b) = (S::load_bytes(self.bytes.as_ptr()), S::load_bytes(self.bytes[32..].as_ptr()));
            let [first, last] = S::interleave(a, b);
            S::store_bytes(mixed.as_mut_ptr(), first);
            S::store_bytes(mixed[32..].as_mut_ptr(), last);
            S::store_bytes(mixed[64..].as_mut_ptr(), S::interleave_halves(a));
            let mut weights = [S::splat(0.0); 4];
            for i in 0..4 {
                weights[i] = S::load(self.weights[8 * i..].as_ptr());
            }
            S::store_rounded_u8(stored.as_mut_ptr(), weights);
            S::store_bytes(stored[32..].as_mut_ptr(), S::load_two_bytes(self.bytes[3..].as_ptr()));
            let [x, y] = S::widen_u16(a);
            S::store(wide.as_mut_ptr(), x);
            S::store(wide[8..].as_mut_ptr(), y);
        }
        (mixed, stored, wide)
    }
}

#[test]
fn byte_methods_do_what_they_say() {
    let bytes: [u8; 64] = std::array::from_fn(|i| (i * 37 + 11) as u8);
    let weights: [f32; 32] = std::array::from_fn(|i| [0.0, 0.5, 1.5, 254.6, 255.0][i % 5]);
    let (a, b) = (&bytes[..32], &bytes[32..]);
    for isa in available() {
        let (mixed, stored, wide) = isa.run(Bytes { bytes, weights });
        for i in 0..32 {
            let from = |start: usize| if i % 2 == 0 { a } else { b }[i / 16 * 16 + start + i % 16 / 2];
            assert_eq!([mixed[i], mixed[32 + i]], [from(0), from(8)]);
            assert_eq!(mixed[64 + i], a[i / 2 + 16 * (i % 2)]);
            assert_eq!([stored[i], stored[32 + i]], [weights[i].round_ties_even() as u8, bytes[3 + i % 2]]);
        }
        for i in 0..16 {
            assert_eq!(wide[i], f32::from(u16::from_le_bytes([a[2 * i], a[2 * i + 1]])));
        }
    }
}

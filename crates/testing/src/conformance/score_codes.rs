//! `score_codes`: logits of coded tokens with an int8 query, and their log-sum-exp over pages.

use super::MakeBackend;
use super::fixture::Random;
use super::heads::{Heads, swept};
use super::selection_rig::{CODES, LAYER, MEANS, Rig, RigSpec, check_error_rounded, rotation, selection};
use backend::reference::group_reduce::log_sum_exp;
use backend::reference::rotate_code::{Decoded, rotate};
use backend::reference::score_codes as reference;
use half::{bf16, f16};

/// Random data in awkward shapes: within the coding's own bound of f32 scoring, within the error rule of the op's
/// definition; the same bits from one thread and three.
///
/// # Panics
/// The backend does not conform.
pub fn score_codes(make: MakeBackend<'_>) {
    let awkward = [(2, 1, 48), (2, 2, 64), (1, 5, 80), (1, 3, 96), (2, 7, 128), (1, 8, 256)];
    let awkward = awkward.map(|(kv_heads, group, d)| Heads::new(kv_heads, group, d));
    for heads in swept(make, &awkward) {
        let mut lanes: Vec<_> = [60, 107, 108, 500].map(|len| (CODES, selection(48, 0.1), len)).to_vec();
        lanes.insert(2, (MEANS, selection(8, 0.1), 100));
        let longest = match (awkward.contains(&heads), heads.head_dim) {
            (true, 64) => 4100,
            (true, _) => 1700,
            (false, _) => 700,
        };
        lanes.push((CODES, selection(48, 0.1), longest));
        let spec = RigSpec { heads, lanes, seed: 4, threads: 1 };
        let all = [1, 3].map(|threads| {
            let rig = Rig::new(make, &RigSpec { threads, ..spec.clone() });
            run(&rig);
            check_random(&rig)
        });
        assert!(all[0] == all[1], "threads change logits");
    }
}

/// How a backend keeps token logits: in f32, or rounded to f16.
struct Kept {
    rounds: bool,
}

impl Kept {
    /// The most that keeping these logits costs one of them.
    fn error(&self, logits: &[f64]) -> f64 {
        let largest = logits.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
        if self.rounds { 2.0_f64.powi(-11) * largest } else { 0.0 }
    }

    /// Whether `want` is kept as `got`; where it is rounded, the last product may be rounded otherwise before.
    fn is(&self, got: f32, want: f32) -> bool {
        let near = [want, want * (1.0 - 2.0 * f32::EPSILON), want * (1.0 + 2.0 * f32::EPSILON)];
        got == want || self.rounds && near.iter().any(|x| f16::from_f32(*x).to_f32() == got)
    }
}

fn run(rig: &Rig) {
    rig.index_codes();
    rig.start();
    rig.step(|rt| rt.score_codes(CODES, LAYER, rig.q(), &rig.rotations[0]));
}

/// The bits of all logits and scores, checked.
fn check_random(rig: &Rig) -> Vec<u32> {
    let (d, group) = (rig.geometry.head_dim, rig.q_heads / rig.geometry.kv_heads);
    let (mut bits, kept) = (Vec::new(), Kept { rounds: rig.rounds_logits() });
    for (i, lane) in rig.lanes.iter().enumerate().filter(|(_, lane)| lane.algorithm == CODES) {
        // Lanes that attend every token exactly are not scored.
        if rig.candidates(lane).is_none() {
            continue;
        }
        let tokens = lane.selection.indexed_tokens(lane.len);
        let logits = rig.runtime.read_token_logits(lane.lane);
        let scores = rig.runtime.read_page_scores(lane.lane, false);
        for h in 0..rig.q_heads {
            let matrix = &rig.rotation_elements[0][h / group * d * d..][..d * d];
            let rotated: Vec<f32> = rotate(matrix, rig.query(i, h), d);
            for g in 0..tokens / 48 {
                let frame = rig.summary(lane, g, h / group);
                let got = &logits[h * tokens + g * 48..][..48];
                let s = f64::from(reference::quantise(&rotated, &Decoded::new(&frame).key_deviation).s);
                let levels: Vec<f64> = reference::score_levels(rig.query(i, h), matrix, &frame);
                let far = got.iter().zip(&levels).fold(0.0_f64, |a, (x, y)| a.max((f64::from(*x) - y).abs()));
                let bound = 0.75 * s * (d as f64).sqrt() + 1e-5 + kept.error(&levels);
                assert!(far <= bound, "d {d}, group {g}: {far} from f32 scoring, bound {bound}");
            }
            let got = &logits[h * tokens..(h + 1) * tokens];
            let page = |n: usize| {
                let plain: Vec<f32> = got[8 * n..8 * (n + 1)].to_vec();
                let exact: Vec<f64> = plain.iter().map(|x| f64::from(*x)).collect();
                (log_sum_exp(&plain), log_sum_exp(&exact))
            };
            let (plain, exact): (Vec<f32>, Vec<f64>) = (0..tokens / 8).map(page).unzip();
            // Scores may come from the logits as they were before they were kept.
            let wide: Vec<f64> = got.iter().map(|x| f64::from(*x)).collect();
            let scores = &scores[h * tokens / 8..(h + 1) * tokens / 8];
            check_error_rounded("page scores", scores, &plain, &exact, kept.error(&wide));
        }
        bits.extend(logits.iter().chain(&scores).map(|x| x.to_bits()));
    }
    bits
}

/// Numbers that f32 holds exactly on the way to the integers: the logits must have the reference's bits.
///
/// The rotation is the identity, queries and means are small integers and deviations powers of two, so that q' and
/// every sum are exact in any order; codes and quantised queries then decide everything.
///
/// # Panics
/// The backend does not conform.
pub fn exact_integers(make: MakeBackend<'_>) {
    let awkward = [(48, 1), (64, 2), (64, 3), (96, 8), (112, 2), (128, 4), (256, 5)];
    for heads in swept(make, &awkward.map(|(head_dim, group)| Heads::new(2, group, head_dim))) {
        let lanes = vec![(CODES, selection(48, 0.1), 300)];
        let mut rig = Rig::new(make, &RigSpec { heads, lanes, seed: 5, threads: 1 });
        let Heads { kv_heads, group, head_dim: d } = heads;
        let identity: Vec<f32> =
            (0..kv_heads * d * d).map(|i| f32::from(u8::from(i % (d * d) % (d + 1) == 0))).collect();
        let identity = rotation(rig.backend.as_ref(), rig.geometry, identity);
        let mut random = Random(6);
        let queries = (0..kv_heads * group * d).map(|_| random.below(401) as f32 - 200.0).collect();
        rig.set_queries(queries);
        let lane = &rig.lanes[0];
        let groups = lane.selection.indexed_tokens(lane.len) / 48;
        for (row, head) in (0..groups).flat_map(|row| (0..kv_heads).map(move |head| (row, head))) {
            let mut frame: Vec<u8> = (0..32 * d).map(|_| random.bits() as u8).collect();
            for c in 0..d {
                let mean = bf16::from_f32(random.below(33) as f32 - 16.0);
                let deviation = bf16::from_f32(2.0_f32.powi(random.below(9) as i32 - 4));
                frame[2 * c..2 * c + 2].copy_from_slice(&mean.to_le_bytes());
                frame[2 * (d + c)..2 * (d + c) + 2].copy_from_slice(&deviation.to_le_bytes());
            }
            rig.runtime.write_frame(lane.summary_rows[row], LAYER, head, &frame);
        }
        rig.step(|rt| rt.score_codes(CODES, LAYER, rig.q(), &identity));
        let logits = rig.runtime.read_token_logits(lane.lane);
        let kept = Kept { rounds: rig.rounds_logits() };
        for h in 0..rig.q_heads {
            for g in 0..groups {
                let frame = rig.summary(lane, g, h / group);
                let want: Vec<f32> = reference::score_codes(rig.query(0, h), &frame);
                let got = &logits[(h * groups + g) * 48..][..48];
                let same = got.iter().zip(&want).all(|(got, want)| kept.is(*got, *want));
                assert!(same, "d {d}, head {h}, group {g}:\n{got:?}\n{want:?}");
            }
        }
    }
}

//! `score_tokens`.

use super::MakeBackend;
use super::fixture::{Fixture, Random, bits, check_error};
use super::heads::ANY_HEADS;
use backend::TokenScore;
use backend::reference::score_tokens as reference;
use kv::TokenId;

fn scores(fixture: &Fixture, rows: &[&[f32]], targets: &[TokenId], top: usize) -> Vec<TokenScore> {
    // The first row is not the buffer's first, so that a wrong stride shows.
    let blank = vec![f32::NAN; rows[0].len()];
    let all: Vec<&[f32]> = std::iter::once(&blank[..]).chain(rows.iter().copied()).collect();
    let buffer = fixture.buffer(all.len(), blank.len(), &all.concat());
    fixture.runtime.enqueue(&mut || fixture.runtime.score_tokens(buffer.from_row(1), targets, top));
    fixture.fence().scores
}

/// Log-probabilities within the error rule, ranks and most likely tokens exactly; a row alone gives the same bits.
pub fn score_tokens(make: MakeBackend<'_>) {
    for vocab in make.some(&[1, 3, 31, 113, 1023]) {
        for count in [1, 3, 64] {
            let (mut random, fixture) = (Random((vocab * count) as u64), Fixture::new(make, ANY_HEADS, 1, 64, vocab));
            let mut logits = random.normals(vocab * count, 3.0);
            // Ties: rank and order go by id.
            (0..vocab * count).step_by(5).for_each(|at| logits[at] = logits[at / vocab * vocab]);
            let rows: Vec<&[f32]> = logits.chunks_exact(vocab).collect();
            let targets: Vec<TokenId> = rows.iter().map(|_| random.below(vocab) as TokenId).collect();
            let top = vocab.min(7);
            let got = scores(&fixture, &rows, &targets, top);
            assert_eq!(got.len(), count);
            for ((score, logits), target) in got.iter().zip(&rows).zip(&targets) {
                check(score, logits, *target, top);
                let alone = scores(&fixture, &[logits], &[*target], top);
                assert_eq!(bits(&[alone[0].logprob]), bits(&[score.logprob]), "alone or in a block");
                assert_eq!(&alone[0], score);
            }
            assert!(scores(&fixture, &rows, &targets, 0).iter().all(|score| score.top.is_empty()));
        }
    }
}

fn check(got: &TokenScore, logits: &[f32], target: TokenId, top: usize) {
    let what = format!("token {target} of {}", logits.len());
    let wide: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    let ((plain, rank), (exact, _)) = (reference::score(logits, target), reference::score(&wide, target));
    assert_eq!((got.token, got.rank), (target, rank), "{what}");
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let tokens: Vec<usize> = got.top.iter().map(|(token, _)| *token as usize).collect();
    assert_eq!(tokens, order[..top], "{what}: the most likely tokens");
    let at: Vec<usize> = tokens.into_iter().chain([target as usize]).collect();
    let got: Vec<f32> = got.top.iter().map(|(_, x)| *x).chain([got.logprob]).collect();
    // The sum of exponentials has its own order: a few roundings of the logits' size.
    let largest = logits.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
    let got: Vec<f32> = got.into_iter().chain([largest]).collect();
    let plain: Vec<f32> = at.iter().map(|at| plain[*at]).chain([largest]).collect();
    let exact: Vec<f64> = at.iter().map(|at| exact[*at]).chain([f64::from(largest)]).collect();
    check_error(&what, &got, &plain, &exact, 4.0);
}

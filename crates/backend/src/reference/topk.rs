//! Choosing pages by sorting them all.

/// The `k` best of the pages `first..first + scores.len()`, ascending: score descending, page ascending on ties.
pub fn topk(scores: &[f32], first: usize, k: usize) -> Vec<usize> {
    let mut pages: Vec<usize> = (0..scores.len()).collect();
    pages.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    pages.truncate(k);
    pages.sort_unstable();
    pages.into_iter().map(|page| first + page).collect()
}

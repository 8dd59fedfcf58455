//! `attention_mass`: what `sample` reports of it, from partials with known log-sum-exps.

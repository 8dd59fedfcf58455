//! From flags to what a request attends with.

use crate::args::{AttentionArgs, SelectionArgs};
use crate::quantity::Share;
use anyhow::{Result, bail, ensure};
use backend::AlgorithmId;
use kv::{PAGE_TOKENS, Selection};
use sparse::Specs;

/// One resolved attention, with the name under which it is reported.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) name: &'static str,
    pub(crate) algorithm: AlgorithmId,
    pub(crate) selection: Selection,
}

impl Attention {
    /// Resolves what was typed.
    pub(crate) fn of(specs: &Specs, args: &AttentionArgs) -> Result<Self> {
        Self::resolve(specs, &args.attention, args.budget, &args.selection)
    }

    /// Resolves one name and an optional budget.
    fn resolve(specs: &Specs, name: &str, budget: Option<Share>, flags: &SelectionArgs) -> Result<Self> {
        let algorithm = specs.by_name(name)?;
        let spec = specs.get(algorithm);
        let mut selection = spec.selection();
        if spec.is_sparse() {
            let tokens = |flag: Option<crate::quantity::TokenCount>, default| flag.map_or(default, |n| n.0);
            selection.budget = budget.map_or(selection.budget, |share| share.0);
            selection.floor_tokens = tokens(flags.budget_floor, selection.floor_tokens);
            selection.min_context = tokens(flags.min_context, selection.min_context);
            selection.sink_tokens = tokens(flags.sink_tokens, selection.sink_tokens);
            selection.window_tokens = tokens(flags.window_tokens, selection.window_tokens);
            ensure!(
                PAGE_TOKENS <= selection.window_tokens,
                "--window-tokens {} is too small: the page in work is always exact; give {PAGE_TOKENS} or more",
                selection.window_tokens
            );
        }
        Ok(Attention { name: spec.name, algorithm, selection })
    }

    /// Resolves every combination of names and budgets, in order; dense and names without budgets appear once.
    pub(crate) fn resolve_all(
        specs: &Specs,
        names: &[String],
        budgets: &[Share],
        flags: &SelectionArgs,
    ) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for name in names {
            let sparse = specs.get(specs.by_name(name)?).is_sparse();
            let own: Vec<Option<Share>> = match sparse && !budgets.is_empty() {
                true => budgets.iter().copied().map(Some).collect(),
                false => vec![None],
            };
            for budget in own {
                all.push(Self::resolve(specs, name, budget, flags)?);
            }
        }
        if all.is_empty() {
            bail!("--attention names no algorithm; this model has {}", specs.names().join(", "));
        }
        Ok(all)
    }

    /// Dense attention.
    pub(crate) fn dense() -> Self {
        Attention { name: "dense", algorithm: Specs::DENSE, selection: Selection::dense() }
    }

    /// The budget as printed; empty for dense.
    pub(crate) fn budget(&self) -> String {
        match self.algorithm == Specs::DENSE {
            true => String::new(),
            false => Share(self.selection.budget).to_string(),
        }
    }

    /// Name and budget.
    pub(crate) fn label(&self) -> String {
        format!("{} {}", self.name, self.budget()).trim_end().to_string()
    }
}

impl From<Attention> for engine::Attention {
    fn from(attention: Attention) -> Self {
        (&attention).into()
    }
}

impl From<&Attention> for engine::Attention {
    fn from(attention: &Attention) -> Self {
        engine::Attention { algorithm: attention.algorithm, selection: attention.selection }
    }
}

//! Every algorithm by name and by number.

use crate::dense::Dense;
use crate::shadowkv::{self, ShadowKv};
use crate::sketch::{self, Sketch};
use crate::{Algorithm, AlgorithmSpec};
use backend::sketch::SketchFrame;
use backend::{AlgorithmId, AlgorithmSet, Backend, BackendError};
use kv::Geometry;

/// The constants of the algorithms that a model's geometry allows, by number: known before anything is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Specs {
    list: Vec<AlgorithmSpec>,
}

/// A name that no algorithm has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownAlgorithm {
    /// As given.
    pub name: String,
    /// Those there are.
    pub known: Vec<&'static str>,
}

impl std::fmt::Display for UnknownAlgorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unknown attention algorithm '{}': this model has {}", self.name, self.known.join(", "))
    }
}

impl std::error::Error for UnknownAlgorithm {}

impl Specs {
    /// Dense is always the first.
    pub const DENSE: AlgorithmId = AlgorithmId(0);

    /// Those for a geometry: a sketch frame needs a head_dim of 48 or more.
    pub fn of(geometry: Geometry) -> Self {
        let mut list =
            vec![Dense::spec(geometry), ShadowKv::new().spec(geometry), ShadowKv::with_estimate().spec(geometry)];
        if SketchFrame::HEAD_DIM_LEAST <= geometry.head_dim {
            list.push(Sketch::spec(geometry));
        }
        Specs { list }
    }

    /// The algorithm called `name`.
    ///
    /// # Errors
    /// None is called so.
    pub fn by_name(&self, name: &str) -> Result<AlgorithmId, UnknownAlgorithm> {
        let found = self.list.iter().position(|spec| spec.name == name);
        let unknown = || UnknownAlgorithm { name: name.to_string(), known: self.names() };
        found.map(|i| AlgorithmId(i as u8)).ok_or_else(unknown)
    }

    /// Their names, by number.
    pub fn names(&self) -> Vec<&'static str> {
        self.list.iter().map(|spec| spec.name).collect()
    }

    /// One's constants.
    pub fn get(&self, id: AlgorithmId) -> &AlgorithmSpec {
        &self.list[usize::from(id.0)]
    }

    /// All of them, by number.
    pub fn all(&self) -> &[AlgorithmSpec] {
        &self.list
    }
}

/// The algorithms of one model on one backend; a lane's [`AlgorithmId`] is a place in it.
pub struct Algorithms {
    specs: Specs,
    list: Vec<Box<dyn Algorithm>>,
}

impl Algorithms {
    /// Those of [`Specs::of`], with what they need on the backend.
    ///
    /// # Errors
    /// No memory for the rotations.
    pub fn new(backend: &dyn Backend, geometry: Geometry) -> Result<Self, BackendError> {
        let specs = Specs::of(geometry);
        let make = |spec: &AlgorithmSpec| -> Result<Box<dyn Algorithm>, BackendError> {
            Ok(match spec.name {
                sketch::NAME => Box::new(Sketch::new(sketch::default_rotations(backend, geometry)?)),
                shadowkv::NAME => Box::new(ShadowKv::new()),
                shadowkv::NAME_WITH_ESTIMATE => Box::new(ShadowKv::with_estimate()),
                _ => Box::new(Dense),
            })
        };
        let list = specs.all().iter().map(make).collect::<Result<_, _>>()?;
        Ok(Algorithms { specs, list })
    }

    /// Their constants.
    pub fn specs(&self) -> &Specs {
        &self.specs
    }

    /// Puts each into what stands in its place: a study's observer, around the algorithm itself.
    pub fn replace_each(&mut self, with: impl FnMut(Box<dyn Algorithm>) -> Box<dyn Algorithm>) {
        self.list = std::mem::take(&mut self.list).into_iter().map(with).collect();
    }

    /// One of them.
    pub fn get(&self, id: AlgorithmId) -> &dyn Algorithm {
        self.list[usize::from(id.0)].as_ref()
    }

    /// Those of a set, ascending.
    pub fn of(&self, set: AlgorithmSet) -> impl Iterator<Item = (AlgorithmId, &dyn Algorithm)> {
        let all = self.list.iter().enumerate().map(|(i, a)| (AlgorithmId(i as u8), a.as_ref()));
        all.filter(move |(id, _)| set.contains(*id))
    }
}

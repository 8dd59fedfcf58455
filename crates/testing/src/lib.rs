//! What tests share: golden data, a decoder without an engine, conformance suites, naive models. Dev-dependency only.

pub mod conformance;

pub mod golden;

pub mod golden_run;

pub mod greedy;

pub mod rig;

pub mod solo;

pub mod company;

pub mod constraints;

pub mod simulator;

pub mod http;

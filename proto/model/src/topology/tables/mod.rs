//! Tables, each by itself: what files may say, and how it is read.

pub(crate) mod action;
mod application;
pub(crate) mod balance;
pub(crate) mod device;
pub(crate) mod edge;
mod guard;
pub(crate) mod host;
pub(crate) mod jwt;
pub(crate) mod mesh;
pub(crate) mod policy;
pub(crate) mod ports;
pub(crate) mod ratelimit;
pub(crate) mod rollout;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod test;

//! Scenarios that only real kernels and programs show. One program for all, so that it is linked once,
//! and scenarios that wait run beside each other.

mod applications;
mod attacks;
mod bypass;
mod change;
mod containers;
mod datagrams;
mod device;
mod disk;
mod edge;
mod exposure;
mod faults;
mod http;
mod join;
mod kernel;
mod nonsense;
mod offload;
mod offload_packets;
mod operate;
mod outage;
mod paths;
mod plaintext;
mod protocols;
mod ratelimit;
mod resilience;
mod rollout;
mod routes;
mod siege;
mod telemetry;
mod traffic;
mod why;

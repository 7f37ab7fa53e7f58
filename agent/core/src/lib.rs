#![forbid(unsafe_code)]

pub mod packet;

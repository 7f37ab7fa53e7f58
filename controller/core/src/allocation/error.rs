//! Reasons why something has no number or address.

use isthmus_model::{Ipv4Net, Name};

/// Why numbers and addresses can't be given as a topology wants them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// A range of the mesh changed under hosts that live in it.
    #[error("`{key}` can't change from {was} to {wanted}: hosts have joined with addresses of it")]
    RangeInUse {
        /// The key in `[mesh]`.
        key: &'static str,
        /// What it was.
        was: String,
        /// What it would be.
        wanted: String,
    },
    /// All blocks of the mesh are taken.
    #[error("no /{length} of {pool} is left for host {host:?}")]
    NoBlockLeft {
        /// Who needs one.
        host: Name,
        /// Length of a block.
        length: u8,
        /// Range that blocks come from.
        pool: Ipv4Net,
    },
    /// A fixed block overlaps one that another host has.
    #[error("`ipv4_block` {block} of host {host:?} overlaps {theirs}, which host {by:?} has")]
    BlockTaken {
        /// The host that wants the block.
        host: Name,
        /// The block.
        block: Ipv4Net,
        /// Who has it.
        by: Name,
        /// What that host has.
        theirs: Ipv4Net,
    },
    /// A host has more workloads and devices than addresses.
    #[error(
        "{wanted} workloads and devices are placed on host {host:?}, but its block {block} has room for {room}"
    )]
    BlockFull {
        /// The host.
        host: Name,
        /// Its block.
        block: Ipv4Net,
        /// Number of addresses wanted.
        wanted: usize,
        /// Their number.
        room: u64,
    },
    /// All virtual addresses are taken.
    #[error("no virtual address of {pool} is left for service {service:?}")]
    NoVirtualLeft {
        /// Who needs one.
        service: Name,
        /// Where they come from.
        pool: Ipv4Net,
    },
}

impl AllocationError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::RangeInUse { key, was, .. } => {
                format!(
                    "leave `{key}` as {was}, or remove all hosts from the mesh before changing it"
                )
            }
            Self::NoBlockLeft { length, .. } => format!(
                "in [mesh], make `ipv4` larger or `host_block` longer than {length} (before hosts join), or remove hosts that are gone"
            ),
            Self::BlockTaken { by, .. } => {
                format!("choose a block that is free, or remove host {by:?} and let it join again")
            }
            Self::BlockFull { host, block, .. } => format!(
                "give it a larger block: `ipv4_block` in [host.{host}], or a `host_block` shorter than {} in [mesh] (before hosts join)",
                block.prefix_len()
            ),
            Self::NoVirtualLeft { .. } => {
                "in [mesh], make `virtual_ipv4` larger (before hosts join)".to_owned()
            }
        }
    }
}

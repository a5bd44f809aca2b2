//! Between fork and exec a child holds copies of all descriptors of this process, close-on-exec or not.
//! Most do not mind. A TAP does: while a copy is open, the hypervisor for which it was made is refused
//! with "Device or resource busy".

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static FORKS: RwLock<()> = RwLock::new(());

/// No fork happens while this is held: for descriptors that must not be copied. Blocks for as long as
/// a spawn takes, so only on threads that may.
pub fn none() -> RwLockReadGuard<'static, ()> {
    // It guards no data that a panic could have left half done.
    FORKS.read().unwrap_or_else(PoisonError::into_inner)
}

/// To be held from before a fork until the child has executed its program. Blocks like [`none`].
pub fn one() -> RwLockWriteGuard<'static, ()> {
    FORKS.write().unwrap_or_else(PoisonError::into_inner)
}

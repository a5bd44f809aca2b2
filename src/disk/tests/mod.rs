//! Tests of [`FileDisks`] on real file systems, and what they share.

mod bases;
mod collects;
mod freezes;
mod layers;
mod overlays;
mod reflinks;
mod room;
mod seeds;

use room::Room;

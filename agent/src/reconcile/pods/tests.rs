//! Dispatcher and workers over a fake node, in paused time: what happens whatever goes wrong.

mod failures;
mod life;
mod runtime;
mod world;

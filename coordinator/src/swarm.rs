//! What I know of the others: who serves what, and where help is needed most.

pub mod directory;
pub mod flow;
pub mod health;
pub mod placement;

pub use directory::Directory;

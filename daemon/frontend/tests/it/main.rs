//! The Dockerfile frontend against answers of the reference's.

mod gateway;
mod golden;

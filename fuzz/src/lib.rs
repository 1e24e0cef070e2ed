//! Nothing to link: the fuzz targets are this crate's tests, one file in `tests/` for each module that parses bytes
//! from outside.
//!
//! `cargo test -p vswitch-fuzz` gives each some thousand random inputs, with the stable compiler. To search by
//! coverage instead, for as long as one likes: `cargo install cargo-bolero`, then for instance
//! `cargo bolero test -p vswitch-fuzz offload_is_harmless`.
//!
//! Random bytes are hardly ever a frame, a configuration or a request, so an input is a good one and a list of bytes to
//! overwrite in it.

//! One protocol a file: views over bytes, no allocation. Byte order never leaves this folder.

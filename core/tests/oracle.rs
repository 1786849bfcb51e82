//! The behavioural suite on all implementations of an address space, and on the oracle.

mod suite;

//! The behavioural suite on whatever claims to be an address space, and the oracle beside it.

mod suite;

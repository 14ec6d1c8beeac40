//! LLB: a typed graph from and to its wire form.

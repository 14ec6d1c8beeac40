//! CNI: configuration, plugin chains, network namespaces.

//! The bundled CNI plugins, one program and a library.

//! Vitesse.

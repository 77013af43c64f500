// Loops of a function so marked are compiled for several vector widths; the loader takes the widest that the processor has.
// Without fused multiply-add (-ffp-contract=off) all of them give the same digits.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define STABLEREP_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define STABLEREP_VECTOR_CLONES
#endif

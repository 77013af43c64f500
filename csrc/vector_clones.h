// A function so marked is compiled for several vector widths; the loader takes the widest that the processor has. Without
// fused multiply-add (-ffp-contract=off, everywhere but in augment_rows.cpp) all of them give the same digits. Other
// compilers and processors get one version; so do sanitizers, which are not yet awake when the choice is made.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && \
    !defined(__SANITIZE_ADDRESS__)
#define STABLEREP_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define STABLEREP_VECTOR_CLONES
#endif

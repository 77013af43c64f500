// x86-64-v4: AVX-512, 32 registers of 16 floats.
#define STABLEREP_LANES_NAMESPACE lanes16
#define STABLEREP_LANES 16
#define STABLEREP_VECTORS 3
#define STABLEREP_ROWS 8
#include "network_lanes.h"

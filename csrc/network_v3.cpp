// x86-64-v3: AVX2 and fused multiply-add, 16 registers of 8 floats.
#define STABLEREP_LANES_NAMESPACE lanes8
#define STABLEREP_LANES 8
#define STABLEREP_VECTORS 2
#define STABLEREP_ROWS 6
#include "network_lanes.h"

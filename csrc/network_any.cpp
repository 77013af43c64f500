// Any processor: vectors of 4 floats, as SSE2 and NEON have them.
#define STABLEREP_LANES_NAMESPACE lanes4
#define STABLEREP_LANES 4
#define STABLEREP_VECTORS 4
#define STABLEREP_ROWS 2
#include "network_lanes.h"

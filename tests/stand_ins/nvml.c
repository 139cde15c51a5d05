/* Stands in for NVIDIA's libnvidia-ml.so.1: the calls that our probe makes, with the signatures and structures of
 * NVML's API reference. The environment says what the GPUs are like, and may change while it is loaded:
 *
 *   NVML_GPUS         how many (1)
 *   NVML_NO_DRIVER    the library is there, the driver is not
 *   NVML_GONE         the driver goes away after it was there
 *   NVML_LOST         index of the GPU that has fallen off the bus
 *   NVML_TEMPERATURE  degrees Celsius (45)
 *   NVML_MEMORY       own | not-supported | not-available | zero | broken
 *   NVML_SERIAL       first part of the UUIDs (0)
 *   NVML_MUTE         every reading answers "unknown error"
 *   NVML_USER         setting a limit is not permitted
 *   NVML_NO_LIMIT     the part has no limit of power
 *   NVML_BUS          bits of the memory's bus (6144)
 *   NVML_CLOCK        how high the memory is clocked at most, MHz (3201)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, DRIVER_NOT_LOADED = 9,
       GPU_IS_LOST = 15, UNKNOWN = 999 };

typedef struct { int index; } *device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;

static struct { int index; } devices[16];
static unsigned int limit_mw = 700000;

static const char *set(const char *name) { const char *value = getenv(name); return value && *value ? value : NULL; }
static int number(const char *name, int otherwise) { const char *value = set(name); return value ? atoi(value) : otherwise; }
static int lost(device_t d) { return number("NVML_LOST", -1) == d->index; }
static int reading(device_t d) { return set("NVML_GONE") ? UNINITIALIZED : lost(d) ? GPU_IS_LOST : set("NVML_MUTE") ? UNKNOWN : OK; }

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return set("NVML_NO_DRIVER") ? DRIVER_NOT_LOADED : OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == UNKNOWN ? "Unknown Error" : "an error of the stand-in"; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    if (set("NVML_GONE")) return UNINITIALIZED;
    *count = number("NVML_GPUS", 1);
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *device) {
    if ((int)index >= number("NVML_GPUS", 1)) return INVALID;
    devices[index].index = index;
    *device = (device_t)&devices[index];
    return lost(*device) ? GPU_IS_LOST : OK;
}
int nvmlDeviceGetName(device_t d, char *name, unsigned int length) {
    if (lost(d)) return GPU_IS_LOST;
    snprintf(name, length, "NVIDIA Stand-in 9000");
    return OK;
}
int nvmlDeviceGetUUID(device_t d, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-%08d-0000-0000-0000-%012d", number("NVML_SERIAL", 0), d->index);
    return OK;
}
int nvmlDeviceGetArchitecture(device_t d, unsigned int *architecture) { *architecture = 9; return reading(d); }
int nvmlDeviceGetCudaComputeCapability(device_t d, int *major, int *minor) { *major = 9; *minor = 0; return reading(d); }
int nvmlDeviceGetNumGpuCores(device_t d, unsigned int *cores) { *cores = 16896; return reading(d); }
int nvmlDeviceGetMemoryBusWidth(device_t d, unsigned int *bits) { *bits = number("NVML_BUS", 6144); return reading(d); }
int nvmlDeviceGetMaxClockInfo(device_t d, unsigned int clock, unsigned int *mhz) {
    enum { CLOCK_MEM = 2 };
    *mhz = number("NVML_CLOCK", 3201);
    return clock == CLOCK_MEM ? reading(d) : INVALID;
}
int nvmlDeviceGetMemoryInfo(device_t d, memory_t *memory) {
    const char *kind = set("NVML_MEMORY") ? set("NVML_MEMORY") : "own";
    if (!strcmp(kind, "not-supported")) return lost(d) ? GPU_IS_LOST : NOT_SUPPORTED;
    if (!strcmp(kind, "broken")) return UNKNOWN;
    memory->total = !strcmp(kind, "not-available") ? (unsigned long long)-1 : !strcmp(kind, "zero") ? 0 : 80ULL << 30;
    memory->used = !strcmp(kind, "own") ? 20ULL << 30 : memory->total;
    memory->free = memory->total - memory->used;
    return reading(d);
}
int nvmlDeviceGetUtilizationRates(device_t d, utilization_t *rates) { rates->gpu = 37; rates->memory = 11; return reading(d); }
int nvmlDeviceGetTemperature(device_t d, unsigned int sensor, unsigned int *degrees) {
    (void)sensor;
    *degrees = number("NVML_TEMPERATURE", 45);
    return reading(d);
}
int nvmlDeviceGetPowerUsage(device_t d, unsigned int *mw) { *mw = 123456; return reading(d); }
int nvmlDeviceGetPowerManagementLimitConstraints(device_t d, unsigned int *lowest, unsigned int *highest) {
    *lowest = 200000;
    *highest = 700000;
    return set("NVML_NO_LIMIT") ? NOT_SUPPORTED : reading(d);
}
int nvmlDeviceGetPowerManagementLimit(device_t d, unsigned int *mw) { *mw = limit_mw; return reading(d); }
int nvmlDeviceSetPowerManagementLimit(device_t d, unsigned int mw) {
    if (set("NVML_USER")) return NO_PERMISSION;
    limit_mw = mw;
    return reading(d);
}

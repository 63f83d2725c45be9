/* Temperature, power, clocks, utilization, and what slows a GPU down. */
#include "library.h"

NVML_CALL(nvmlDeviceGetTemperature)(nvmlDevice_t device, unsigned int sensor, unsigned int *temperature)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(temperature && sensor == 0);
    *temperature = (unsigned int)gpu->temperature;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetTemperatureV)(nvmlDevice_t device, nvmlTemperature_v1_t *temperature)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(temperature);
    REQUIRE_VERSION(temperature, nvmlTemperature_v1_t, 1);
    REQUIRE_ARGUMENT(temperature->sensorType == 0);
    temperature->temperature = (int)gpu->temperature;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetMarginTemperature)(nvmlDevice_t device, nvmlMarginTemperature_v1_t *margin)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(margin);
    REQUIRE_VERSION(margin, nvmlMarginTemperature_v1_t, 1);
    REQUIRE_SUPPORT(gpu->supports.margin_temperature);
    margin->marginTemperature = (int)gpu_margin(gpu);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetTemperatureThreshold)(nvmlDevice_t device, unsigned int threshold,
                                             unsigned int *temperature)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(temperature && threshold < NVML_TEMPERATURE_THRESHOLD_COUNT);
    int64_t degrees = 0; /* the model has no such threshold */
    if (threshold == NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)
        degrees = gpu->threshold.shutdown;
    else if (threshold == NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
        degrees = gpu->threshold.slowdown;
    else if (threshold == NVML_TEMPERATURE_THRESHOLD_MEM_MAX)
        degrees = gpu->threshold.memory_max;
    else if (threshold == NVML_TEMPERATURE_THRESHOLD_GPU_MAX)
        degrees = gpu->threshold.gpu_max;
    REQUIRE_SUPPORT(degrees > 0);
    *temperature = (unsigned int)degrees;
    return NVML_SUCCESS;
}

UINT_GETTER(nvmlDeviceGetPowerUsage, DYNAMIC, true, gpu->power.usage)
UINT_GETTER(nvmlDeviceGetPowerManagementMode, STATIC, true, 1)
UINT_GETTER(nvmlDeviceGetPowerManagementLimit, STATIC, true, gpu->power.limit)
UINT_GETTER(nvmlDeviceGetPowerManagementDefaultLimit, STATIC, true, gpu->power.default_limit)
UINT_GETTER(nvmlDeviceGetEnforcedPowerLimit, DYNAMIC, true, gpu->power.enforced_limit)
UINT_GETTER(nvmlDeviceGetPowerState, DYNAMIC, true, gpu->performance_state)
UINT_GETTER(nvmlDeviceGetPerformanceState, DYNAMIC, true, gpu->performance_state)
UINT_GETTER(nvmlDeviceGetNumFans, STATIC, true, 0)
UINT_GETTER(nvmlDeviceGetFanSpeed, DYNAMIC, false, 0) /* passive boards all of them */

NVML_CALL(nvmlDeviceGetPowerManagementLimitConstraints)(nvmlDevice_t device, unsigned int *minimum,
                                                        unsigned int *maximum)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(minimum && maximum);
    *minimum = (unsigned int)gpu->power.min_limit;
    *maximum = (unsigned int)gpu->power.max_limit;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetTotalEnergyConsumption)(nvmlDevice_t device, unsigned long long *energy)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(energy);
    *energy = (unsigned long long)gpu_energy(gpu);
    return NVML_SUCCESS;
}

/* One of the four clocks of a set. */
#define CLOCK_OF(set, type)                                    \
    (unsigned int)((type) == NVML_CLOCK_GRAPHICS ? (set).graphics \
                   : (type) == NVML_CLOCK_SM     ? (set).sm       \
                   : (type) == NVML_CLOCK_MEM    ? (set).mem      \
                                                 : (set).video)

#define CLOCK_GETTER(call, access, set)                                                          \
    NVML_CALL(call)(nvmlDevice_t device, unsigned int type, unsigned int *clock)      \
    {                                                                                            \
        DEVICE_CALL(device, access);                                                             \
        REQUIRE_ARGUMENT(clock && type < NVML_CLOCK_COUNT);                                      \
        unsigned int megahertz = CLOCK_OF(set, type);                                            \
        REQUIRE_SUPPORT(megahertz > 0);                                                          \
        *clock = megahertz;                                                                      \
        return NVML_SUCCESS;                                                                     \
    }

CLOCK_GETTER(nvmlDeviceGetClockInfo, DYNAMIC, gpu->clocks)
CLOCK_GETTER(nvmlDeviceGetMaxClockInfo, STATIC, gpu->max_clocks)
CLOCK_GETTER(nvmlDeviceGetApplicationsClock, DYNAMIC, gpu->application_clocks)
CLOCK_GETTER(nvmlDeviceGetDefaultApplicationsClock, STATIC, gpu->default_application_clocks)

NVML_CALL(nvmlDeviceGetClock)(nvmlDevice_t device, unsigned int type, unsigned int id, unsigned int *clock)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(clock && type < NVML_CLOCK_COUNT && id < NVML_CLOCK_ID_COUNT);
    unsigned int megahertz = id == NVML_CLOCK_ID_CURRENT             ? CLOCK_OF(gpu->clocks, type)
                             : id == NVML_CLOCK_ID_APP_CLOCK_TARGET  ? CLOCK_OF(gpu->application_clocks, type)
                             : id == NVML_CLOCK_ID_APP_CLOCK_DEFAULT ? CLOCK_OF(gpu->default_application_clocks, type)
                                                                     : CLOCK_OF(gpu->max_clocks, type);
    REQUIRE_SUPPORT(megahertz > 0);
    *clock = megahertz;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetUtilizationRates)(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(utilization);
    REQUIRE_SUPPORT(!gpu->mig.mode);
    utilization->gpu = (unsigned int)gpu->utilization.gpu;
    utilization->memory = (unsigned int)gpu->utilization.memory;
    return NVML_SUCCESS;
}

/* The reasons have two names each: drivers before R535 called them throttle reasons. */
#define REASONS_GETTER(call, access, reasons)                                                \
    NVML_CALL(call)(nvmlDevice_t device, unsigned long long *result)              \
    {                                                                                        \
        DEVICE_CALL(device, access);                                                         \
        REQUIRE_ARGUMENT(result);                                                            \
        *result = (unsigned long long)(reasons);                                             \
        return NVML_SUCCESS;                                                                 \
    }

REASONS_GETTER(nvmlDeviceGetCurrentClocksEventReasons, DYNAMIC, gpu->clocks_event_reasons)
REASONS_GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, DYNAMIC, gpu->clocks_event_reasons)
REASONS_GETTER(nvmlDeviceGetSupportedClocksEventReasons, STATIC, gpu->supported_clocks_event_reasons)
REASONS_GETTER(nvmlDeviceGetSupportedClocksThrottleReasons, STATIC, gpu->supported_clocks_event_reasons)

NVML_CALL(nvmlDeviceGetViolationStatus)(nvmlDevice_t device, unsigned int policy, nvmlViolationTime_t *time)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(time && policy < NVML_PERF_POLICY_COUNT);
    int64_t violation = 0;
    if (policy == NVML_PERF_POLICY_POWER)
        violation = gpu_throttle_ns(gpu, THROTTLE_POWER_CAP);
    else if (policy == NVML_PERF_POLICY_THERMAL)
        violation = gpu_throttle_ns(gpu, THROTTLE_SW_THERMAL) + gpu_throttle_ns(gpu, THROTTLE_HW_THERMAL);
    else if (policy == NVML_PERF_POLICY_SYNC_BOOST)
        violation = gpu_throttle_ns(gpu, THROTTLE_SYNC_BOOST);
    time->referenceTime = (unsigned long long)(monotonic_ns() / 1000); /* microseconds, the other nanoseconds */
    time->violationTime = (unsigned long long)violation;
    return NVML_SUCCESS;
}

"""Lines of the NVIDIA driver and of the PCI bus in the kernel log, each with the event that it stands for.

Most are from public issues of the repositories that are named, the others from the source of the open modules.
"""

# line, kind, finding, severity, action, and what else must be in the event
DRIVER_LINES: list[tuple[str, str, str, str, str, dict[str, object]]] = [
    # dra-driver-nvidia-gpu 982
    ("NVRM: nvAssertOkFailedNoLog: Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x00000062) returned from"
     " status @ kernel_channel.c:2827", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: nvAssertOkFailedNoLog: Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x00000062) returned from"
     " _kchannelSendChannelAllocRpc(pKernelChannel, pChannelGpfifoParams, pKernelChannelGroup, bFullSriov) @"
     " kernel_channel.c:936", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU0 nvCheckOkFailedNoLog: Check failed: Generic RISC-V error [NV_ERR_RISCV_ERROR] (0x00000079) returned"
     " from status @ kernel_gsp.c:4945", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: nvAssertOkFailedNoLog: Assertion failed: Generic Falcon error [NV_ERR_FLCN_ERROR] (0x00000070) returned"
     " from status @ kernel_sec2.c:1", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU3 nvAssertOkFailedNoLog: Assertion failed: Fatal error occurred [NV_ERR_FATAL_ERROR] (0x00000071)"
     " returned from rmStatus @ conf_compute.c:1", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: nvCheckOkFailedNoLog: Check failed: GPU currently in full chip reset [NV_ERR_GPU_IN_FULLCHIP_RESET]"
     " (0x00000010) returned from status @ rpc.c:1", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: nvCheckOkFailedNoLog: Check failed: GPU not in full power [NV_ERR_GPU_NOT_FULL_POWER] (0x00000011) returned"
     " from status @ gpu.c:1", "nvrm", "driver.errors", "warning", "reboot_node", {}),
    ("NVRM: nvAssertOkFailedNoLog: Assertion failed: GPU lost from the bus [NV_ERR_GPU_IS_LOST] (0x0000000F) returned"
     " from rmStatus @ kernel_ce_gv100.c:106", "nvrm", "driver.errors", "warning", "reboot_node", {}),
    ("NVRM: nvCheckOkFailedNoLog: Check failed: Insufficient power [NV_ERR_INSUFFICIENT_POWER] (0x0000001C) returned"
     " from status @ gpu.c:1", "nvrm", "driver.errors", "warning", "inspect_hardware", {}),
    # gpud, components/accelerator/nvidia
    ("NVRM: nvAssertOkFailedNoLog: Assertion failed: Call timed out [NV_ERR_TIMEOUT] (0x00000065) returned from"
     " pRmApi->Control(pRmApi, RES_GET_CLIENT_HANDLE(pKernelChannel)) @ nv_gpu_ops.c:10963",
     "nvrm", "driver.errors", "warning", "contact_support", {}),
    ("NVRM: rpcRmApiAlloc_GSP: GspRmAlloc failed: hClient=0xc1d1a616; hParent=0x5c000054; hObject=0x5c00005b;"
     " hClass=0x0000c86f; paramsSize=0x00000170; paramsStatus=0x00000062; status=0x00000062",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: _issueRpcAndWait: rpcSendMessage failed with status 0x00000062 for fn 76!",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    # open-gpu-kernel-modules 1080, 1230, 446
    ("NVRM: _kgspIsHeartbeatTimedOut: Heartbeat timed out, currentTimeMs 709957545 heartbeat 105067568 diff 8025"
     " timeout 5200", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU6 _kgspIsHeartbeatTimedOut: LibOS heartbeat timed out, currentTimeMs 812751949 heartbeat 1899482"
     " heartbeatWithOffsetMs 812745879 diff 6070 timeout 5200", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: _kgspLogRpcSanityCheckFailure: GPU0 sanity check failed 0xf waiting for RPC response from GSP. Expected"
     " function 4097 (GSP_INIT_DONE) sequence 0.", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: Timeout waiting for RPC from GSP! Expected function 76 (GSP_RM_CONTROL) (0x2080014b 0x5).",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU0 _kgspLogXid119: Timeout after 45s of waiting for RPC response from GPU0 GSP! Expected function 76",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU6 _kgspLogRpcTimeout: ********************************* GSP Timeout **********************************",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: kgspHealthCheck_TU102: ****************************** GSP-CrashCat Report *******************************",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: Rate limiting GSP RPC error prints for GPU at PCI:0000:04:00 (printing 1 of every 30).  The GPU likely"
     " needs to be reset.", "nvrm", "driver.errors", "warning", "reset_gpu", {"pci": "0000:04:00"}),
    # nvtrust 77, open-gpu-kernel-modules 729, 789, 1120
    ("NVRM: kfspWaitForResponse: FSP command timed out", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: kfspPollForResponse_IMPL: FSP command timed out", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: kfspPollForQueueEmpty_IMPL: Timed out waiting for FSP command queue to be empty.",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: kfspWaitForSecureBoot_GH100: Timeout while polling for FSP boot complete, 0x0, 0x0, 0x0, 0x0, 0x0",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU0 kfspWaitForSecureBoot_GB202: Error status 0x65 while polling for FSP boot complete, 0xffffffff",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU6 kfspProcessCommandResponse_GH100: FSP response reported error. Task ID: 0x1 Command type: 0x14 Error"
     " code: 0x33", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: ksec2PrepareBootCommands_GB20B: SEC2 secure boot partition timed out.",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU6 kgspFmcReportErrorCode_GH100: Fatal GSP-FMC Error: version=0x1, partition=0x1, error code=0xaff",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: kgspBootstrap_GH100: GSP-FMC reported an error while attempting to boot GSP: 0xb",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: GPU6 _kgspBootGspRm: unexpected WPR2 already up, cannot proceed with booting GSP",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: kgspWaitForGfwBootOk_TU102: (the GPU may be in a bad state and may need to be reset)",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: gpuWaitForGfwBootComplete_TU102: failed to wait for GFW_BOOT: (progress 0x3)",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: kflcnWaitForHalt_TU102: Timeout waiting for Falcon to halt",
     "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM: RmInitAdapter: Cannot initialize GSP firmware RM", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    ("NVRM RmInitAdapter: Cannot initialize GSP firmware RM", "nvrm", "driver.errors", "warning", "reset_gpu", {}),
    # open-gpu-kernel-modules 1080
    ("NVRM: _kgspFwContainerVerifyVersion: GSP firmware image version mismatch: got version 570.172.08, expected"
     " version 570.190", "nvrm", "driver.init_failed", "critical", "update_software", {}),
    ("NVRM: GPU0 RmFetchGspRmImages: No firmware image found", "nvrm", "driver.init_failed", "critical",
     "update_software", {}),
    # raspberrypi/linux and others; the second of kernels whose records hold several lines, the third of 2008
    ("NVRM: BAR1 is 0M @ 0x0 (PCI:0000:05:00.0)", "nvrm", "driver.init_failed", "critical", "reboot_node",
     {"pci": "0000:05:00"}),
    ("NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:\nNVRM: BAR0 is 0M @ 0x0 (PCI:0000:c1:00.0)",
     "nvrm", "driver.init_failed", "critical", "reboot_node", {"pci": "0000:c1:00"}),
    ("NVRM: BAR1 is 0M @ 0x00000000 (PCI:0001:00.0)", "nvrm", "driver.init_failed", "critical", "reboot_node",
     {"pci": None}),
    ("nvidia: probe of 0000:05:00.0 failed with error -1", "nvrm", "driver.init_failed", "critical", "reboot_node",
     {"pci": "0000:05:00"}),
    ("nvidia 0000:05:00.0: probe with driver nvidia failed with error -1", "nvrm", "driver.init_failed", "critical",
     "reboot_node", {"pci": "0000:05:00"}),
    ("nvidia-nvswitch 0000:07:00.0: probe with driver nvidia-nvswitch failed with error -1", "nvrm",
     "driver.init_failed", "critical", "reboot_node", {"pci": "0000:07:00"}),
    # open-gpu-kernel-modules 393, negativo17 158, nvidia 280.13
    ("NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:25a0)\nNVRM: installed in this system is not supported by the\n"
     "NVRM: NVIDIA 520.56.06 driver release.", "nvrm", "driver.init_failed", "critical", "update_software",
     {"pci": "0000:01:00"}),
    ("NVRM: The NVIDIA GPU 0000:09:00.0 (PCI ID: 10de:1d01)\nNVRM: installed in this system is not supported by open\n"
     "NVRM: nvidia.ko because it does not include the required GPU\nNVRM: System Processor (GSP).", "nvrm",
     "driver.init_failed", "critical", "update_software", {"pci": "0000:09:00"}),
    ("NVRM: The NVIDIA GPU 0000:04:00.0 (PCI ID: 10de:0a76) installed\nNVRM: in this system is not supported by the"
     " 280.13 NVIDIA Linux", "nvrm", "driver.init_failed", "critical", "update_software", {"pci": "0000:04:00"}),
    ("NVRM: Attempting to remove device 0000:01:00.0 with non-zero usage count!", "nvrm", "driver.errors", "warning",
     "reboot_node", {"pci": "0000:01:00"}),
    # gpu-operator 121
    ("nvidia-nvswitch: Version mismatch, kernel version 450.80.02 user version 450.51.06", "nvrm",
     "driver.client_mismatch", "warning", "update_software", {}),
    ("nvidia-nvlink: nvlink_lib_ctrl_check_version: version mismatch, kernel version 570.86 user version 570.124",
     "nvrm", "driver.client_mismatch", "warning", "update_software", {}),
    # kernel 6.x and 5.x, drivers/pci/pci.c
    ("nvidia 0000:3b:00.0: Unable to change power state from D3cold to D0, device inaccessible", "nvrm",
     "driver.errors", "warning", "reboot_node", {"pci": "0000:3b:00"}),
    ("nvidia 0000:3b:00.0: can't change power state from D3cold to D0 (config space inaccessible)", "nvrm",
     "driver.errors", "warning", "reboot_node", {"pci": "0000:3b:00"}),
    ("nvidia 0000:3b:00.0: Unable to change power state from unknown to D0, device inaccessible", "nvrm",
     "driver.errors", "warning", "reboot_node", {"pci": "0000:3b:00"}),
    ("nvidia 0000:3b:00.0: not ready 65535ms after FLR; giving up", "nvrm", "driver.errors", "warning",
     "reboot_node", {"pci": "0000:3b:00"}),
    # drivers/pci/hotplug, drivers/pci/pcie
    ("pcieport 0000:89:02.0: pciehp: Slot(400): Link Down", "hotplug", "pcie.port_error", "warning",
     "inspect_hardware", {"pci": "0000:89:02"}),
    ("pcieport 0000:89:02.0: pciehp: Slot(0-3): Card not present", "hotplug", "pcie.port_error", "warning",
     "inspect_hardware", {"pci": "0000:89:02"}),
    ("pcieport 0000:03:00.0: AER: device recovery failed", "dpc", "pcie.port_error", "warning", "inspect_hardware",
     {"pci": "0000:03:00"}),
    # kernel/panic.c, before and since 6.18
    ("WARNING: CPU: 5 PID: 3201 at /var/lib/dkms/nvidia/570.86.15/build/nvidia-uvm/uvm_va_space.c:417"
     " uvm_va_space_destroy+0x5a/0x900 [nvidia_uvm]", "nvrm", "driver.errors", "warning", "contact_support", {}),
    ("WARNING: nvidia-drm/nvidia-drm-drv.c:1024 at nv_drm_revoke_modeset_permission+0x2b/0x100 [nvidia_drm 1f2e3d4c5b],"
     " CPU#3: python/3201", "nvrm", "driver.errors", "warning", "contact_support", {}),
]  # fmt: skip

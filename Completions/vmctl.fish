# fish completion for vmctl(8): commands, options and their values, paths, and the machines that vmd knows.

# The names of machines; nothing at all when there is no daemon. Arguments: status' own.
function __vmctl_machines
    set -l words (commandline -opc)
    set -l socket
    if set -l place (contains -i -- -s $words); and set -q words[(math $place + 1)]
        set socket -s $words[(math $place + 1)]
    end
    timeout 2 vmctl $socket status $argv 2>/dev/null </dev/null | awk 'NR > 1 { print $NF }'
end

# The command's whole name; nothing while there is none.
function __vmctl_command
    set -l commands cdrom console create export help image load log pause reload reset rollback rollforward run show snapshot start \
        status stop unpause wait
    set -l words (commandline -opc)[2..-1]
    while set -q words[1]
        switch $words[1]
            case -s
                set -e words[1]
            case '-*'
            case '*'
                # It may be shortened.
                set -l matches (string match -- "$words[1]*" $commands)
                contains -- $words[1] $commands; and echo $words[1]; or test (count $matches) -eq 1; and echo $matches
                return
        end
        set -e words[1]
    end
end

function __vmctl_is
    contains -- (__vmctl_command)[1] $argv
end

complete -c vmctl -f
complete -c vmctl -n 'not __vmctl_command | string length -q' -a '
    cdrom\t"Change the disc in the drive of a machine"
    console\t"Attach this terminal to a machine"
    create\t"Make a disk image"
    export\t"Write a machine or disks as a machine of VMware"
    help\t"Describe a command"
    image\t"Look at image files, and work on them"
    load\t"Add the machines of a further configuration"
    log\t"Set how much vmd logs"
    pause\t"Stop a machine until it is told to go on"
    reload\t"Read the configuration again"
    reset\t"Forget what was configured"
    rollback\t"Go back to what the image below a disk holds"
    rollforward\t"Undo the last rollback"
    run\t"Run a machine in the foreground"
    show\t"List machines"
    snapshot\t"Keep what a disk holds, and come back to it"
    start\t"Start a machine"
    status\t"List machines"
    stop\t"Ask a machine to shut down"
    unpause\t"Let a paused machine go on"
    wait\t"Wait until a machine has ended"'
complete -c vmctl -s h -l help -d 'Show help'
complete -c vmctl -s v -d 'Say more'
complete -c vmctl -n 'not __vmctl_is create run' -s s -r -F -d 'Control socket of vmd'

complete -c vmctl -n '__vmctl_is start status show export image rollback rollforward snapshot' -a '(__vmctl_machines)'
complete -c vmctl -n '__vmctl_is cdrom console pause stop unpause wait' -a '(__vmctl_machines -r)'
complete -c vmctl -n '__vmctl_is load cdrom create export image rollback rollforward snapshot' -F
complete -c vmctl -n '__vmctl_is log' -a 'brief verbose'
complete -c vmctl -n '__vmctl_is reset' -a 'all switches vms'

complete -c vmctl -n '__vmctl_is start run' -s b -r -F -d 'Kernel or BIOS image'
complete -c vmctl -n '__vmctl_is start run' -s m -x -a '128M 256M 512M 1G 2G 4G' -d 'Memory'
complete -c vmctl -n '__vmctl_is start run' -l initrd -r -F -d 'Initial ramdisk'
complete -c vmctl -n '__vmctl_is start run' -l cmdline -x -d 'Kernel command line'
complete -c vmctl -n '__vmctl_is start run' -l engine -x -a 'auto kvm translator' -d 'What runs the code of the guest'
complete -c vmctl -n '__vmctl_is start run' -l cpu -x -a 'host x86-64 x86-64-v2 x86-64-v3 x86-64-v4' -d 'CPU model'
complete -c vmctl -n '__vmctl_is run' -l module -r -F -d 'Module for a multiboot kernel'
complete -c vmctl -n '__vmctl_is run' -l debug-exit -x -d 'Port that ends the machine'

complete -c vmctl -n '__vmctl_is start run' -s B -x -a 'disk cdrom net' -d 'Boot from'
complete -c vmctl -n '__vmctl_is start' -s c -d 'Attach to its console'
complete -c vmctl -n '__vmctl_is start run' -s d -r -F -d 'Disk image'
complete -c vmctl -n '__vmctl_is start' -s i -x -d 'Number of network interfaces'
complete -c vmctl -n '__vmctl_is start' -s L -d 'Local network interface'
complete -c vmctl -n '__vmctl_is start' -s n -x -d 'Network interface on a switch'
complete -c vmctl -n '__vmctl_is start' -s p -x -d 'Number of CPUs'
complete -c vmctl -n '__vmctl_is start run' -s r -r -F -d 'ISO image'
complete -c vmctl -n '__vmctl_is start' -s t -x -a '(__vmctl_machines)' -d 'Instance of'

complete -c vmctl -n '__vmctl_is stop' -s a -d 'All machines'
complete -c vmctl -n '__vmctl_is stop' -s f -d 'At once'
complete -c vmctl -n '__vmctl_is stop' -s w -d 'Wait until it has ended'
complete -c vmctl -n '__vmctl_is status show' -s j -d 'As JSON'
complete -c vmctl -n '__vmctl_is status show' -s r -d 'Only those that run'

complete -c vmctl -n '__vmctl_is create export image rollback rollforward snapshot' -l allow-base -r -F -d 'What images may stand on'
complete -c vmctl -n '__vmctl_is create' -s s -x -a '1G 10G 50G' -d 'Size of the disk'
complete -c vmctl -n '__vmctl_is create image' -s b -r -F -d 'Base'
complete -c vmctl -n '__vmctl_is create' -s i -r -F -d 'Image to copy'
complete -c vmctl -n '__vmctl_is create export image' -s c -d 'Compress'
complete -c vmctl -n '__vmctl_is create image' -l cluster-size -x -a '4K 64K 1M 2M' -d 'Size of clusters'
complete -c vmctl -n '__vmctl_is create image' -l compression -x -a 'zlib zstd' -d 'Method'
complete -c vmctl -n '__vmctl_is create image' -l refcount-bits -x -a '1 2 4 8 16 32 64' -d 'Width of refcounts'
complete -c vmctl -n '__vmctl_is export' -s m -x -a '128M 256M 512M 1G 2G 4G' -d 'Memory'
complete -c vmctl -n '__vmctl_is export' -s n -x -d 'Name of the machine'
complete -c vmctl -n '__vmctl_is image' -a 'check commit convert info map rebase repair resize'
complete -c vmctl -n '__vmctl_is image snapshot' -s j -d 'As JSON'
complete -c vmctl -n '__vmctl_is image' -s k -d 'Keep what it has'
complete -c vmctl -n '__vmctl_is image' -s l -d 'Leaks only'
complete -c vmctl -n '__vmctl_is image' -s u -d 'Only the name'
complete -c vmctl -n '__vmctl_is image' -l chain -d 'Also what it stands on'
complete -c vmctl -n '__vmctl_is image' -l shrink -d 'Lose what lies behind the end'
complete -c vmctl -n '__vmctl_is rollforward' -s f -d 'Lose what was written since'
complete -c vmctl -n '__vmctl_is cdrom' -a 'eject insert show'
complete -c vmctl -n '__vmctl_is cdrom' -s f -d 'Even when the guest has locked the drive'
complete -c vmctl -n '__vmctl_is image' -l disk -x -d 'Which disk of a machine'
complete -c vmctl -n '__vmctl_is snapshot' -a 'apply create delete list'
complete -c vmctl -n '__vmctl_is snapshot' -s d -d 'A derived image'

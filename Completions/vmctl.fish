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
    set -l commands console help load log pause reload reset run show start status stop unpause wait
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
    console\t"Attach this terminal to a machine"
    help\t"Describe a command"
    load\t"Add the machines of a further configuration"
    log\t"Set how much vmd logs"
    pause\t"Stop a machine until it is told to go on"
    reload\t"Read the configuration again"
    reset\t"Forget what was configured"
    run\t"Run a machine in the foreground"
    show\t"List machines"
    start\t"Start a machine"
    status\t"List machines"
    stop\t"Ask a machine to shut down"
    unpause\t"Let a paused machine go on"
    wait\t"Wait until a machine has ended"'
complete -c vmctl -s h -l help -d 'Show help'
complete -c vmctl -s v -d 'Say more'
complete -c vmctl -n 'not __vmctl_is run' -s s -r -F -d 'Control socket of vmd'

complete -c vmctl -n '__vmctl_is start status show' -a '(__vmctl_machines)'
complete -c vmctl -n '__vmctl_is console pause stop unpause wait' -a '(__vmctl_machines -r)'
complete -c vmctl -n '__vmctl_is load' -F
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

complete -c vmctl -n '__vmctl_is start' -s B -x -a 'disk cdrom net' -d 'Boot from'
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
